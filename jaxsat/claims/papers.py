"""The papers that claims are of, once each."""

from jaxsat.claims.claim import Paper

GODEY = Paper("godey2024", "Godey, de la Clergerie & Sagot", 2024,
              "Why do small language models underperform? Studying LM saturation via the softmax bottleneck",
              "arXiv:2404.07647")  # fmt: skip
KULKARNI = Paper("kulkarni2026", "Kulkarni et al.", 2026,
                 "Disentangling geometry, performance, and training in language models",
                 "arXiv:2602.20433")  # fmt: skip
