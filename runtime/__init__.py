"""Plan and shards to tokens: sessions, the wire, agents, the coordinator and its clients."""
