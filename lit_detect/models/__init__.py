"""Networks, and the detectors made of them."""
