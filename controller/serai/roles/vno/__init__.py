"""VNO: installs and operates VNets that are described in XML."""
