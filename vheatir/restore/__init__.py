"""`vheatir restore`: pictures through a network, one or many."""
