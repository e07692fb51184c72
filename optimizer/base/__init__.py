"""What everything else stands on: errors, the store of finished steps, progress, devices."""
