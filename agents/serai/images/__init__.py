"""Guest images: built from Debian packages without root, cached by content. Stands alone."""
