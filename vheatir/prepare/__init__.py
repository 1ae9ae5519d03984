"""`vheatir prepare`: image sets fetched, verified, cut and packed."""
