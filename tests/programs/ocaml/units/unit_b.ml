let name = Sys.opaque_identity "first"
