"""What every process shares: settings, lifecycle, telemetry, clocks, the journal of a core."""
