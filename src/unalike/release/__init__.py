"""What leaves the house: a policy, the gate that samples must pass, and the bundle that others receive.

`policy` states the budget, `facts` what an audit found, `gate` decides. Only `run` and `model` reach torch.
"""
