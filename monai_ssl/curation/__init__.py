"""What happens before training: splitting, checking, proposing presets, preparing public data, the phantom."""
