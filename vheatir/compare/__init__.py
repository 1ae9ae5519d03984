"""`vheatir compare`: figures of pictures before and after."""
