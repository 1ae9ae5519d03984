"""`vheatir bench`: speed and memory against the published formulation."""
