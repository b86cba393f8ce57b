"""What travels between processes: frozen structs, no behaviour. One module per direction.

`inference`: a request and the events that answer it (links and worker socket alike). `record`: what a peer says about itself.
`link`: what two peers say to each other. `worker`: what a node and its worker process say to each other.
Unknown fields are ignored, so a newer minor may add some; a field is never renamed and never changes its meaning.
"""
