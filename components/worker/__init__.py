"""One agent beside one engine: takes attempts, hands KV over, sends tokens, says how it fares."""
