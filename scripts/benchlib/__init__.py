"""The parts of scripts/bench: work in processes of its own, mounts, the groups of measurements, the report, the picture."""
