"""Token-level batching that engines share: step planner, KV blocks, prefix cache."""
