"""Row-wise operations: softmax, norms, element-wise arithmetic and rotary embeddings."""
