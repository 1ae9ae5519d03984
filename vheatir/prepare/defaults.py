"""Defaults of `vheatir prepare`, which the command line reads without loading what does the work."""

OWN_TERMS = "not stated"
FREE = (
    "creativecommons.org/publicdomain/zero/",
    "creativecommons.org/publicdomain/mark/",
)  # parts of licenses' addresses
