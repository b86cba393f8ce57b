"""The older registry's HTTP face: the mesh as a list of services, and foreign services that register over HTTP."""
