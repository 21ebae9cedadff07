"""`muxrec serve`: a bundle behind HTTP, with starlette, uvicorn and prometheus-client (the extra `server`)."""
