"""The site: pages, and what is generated of them."""
