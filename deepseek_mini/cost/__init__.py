"""What a run costs: FLOPs, device-seconds, hardware peaks."""
