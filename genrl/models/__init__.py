"""Model adapters: the only place, besides rewards and worlds, that knows diffusers."""
