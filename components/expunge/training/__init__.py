"""Training: one loop, and the ways to launch it.

`loop` trains, and never knows how it was launched. `torchrun` launches it in several processes of
this machine, `multinode` on several nodes, each of which runs `node`; none of them knows torch.
`process` stands between: it is what torchrun starts, and calls the loop. `exchange` is all that the
launched processes and their launcher tell each other.
"""
