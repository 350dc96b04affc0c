"""APE and SABR: prototypes, filtering, relabeling, boundary refinement."""
