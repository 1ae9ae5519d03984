"""`vheatir train`: training of restoration networks."""
