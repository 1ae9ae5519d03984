"""What `vheatir analyze` needs: networks, images, measurements, figures."""
