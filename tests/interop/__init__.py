"""Other libraries beside the zoo: what they read of ours, and we of theirs."""
