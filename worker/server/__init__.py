"""The model server: keeps models warm and answers generation requests on a private Unix socket."""
