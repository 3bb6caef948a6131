"""Tables, figures, claims and one self-contained HTML page, from the measurements, the runs and the law fits alone."""
