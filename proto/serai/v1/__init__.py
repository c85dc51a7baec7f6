"""The contracts, version 1. The modules here are generated from the .proto files beside them."""
