"""Suite offload: keeping data one level further out, and how much of the cost can be hidden."""
