"""Clips through the networks of `vheatir restore`, frame by frame or several frames at a time."""
