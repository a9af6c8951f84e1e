"""What keeps a run in hand: the stop signal, the brake, complete checkpoints."""
