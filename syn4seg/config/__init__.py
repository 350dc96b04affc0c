"""The configuration: one frozen tree, its sections, the published protocols, fingerprints."""
