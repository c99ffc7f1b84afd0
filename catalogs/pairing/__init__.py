"""Which MSI goes with which HSI."""
