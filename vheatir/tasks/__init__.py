"""What `vheatir pretrain`, `detect` and `segment` share."""
