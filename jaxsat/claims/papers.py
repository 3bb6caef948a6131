"""The papers that claims are of, once each."""

from jaxsat.claims.claim import Paper

GODEY = Paper("godey2024", "Godey, de la Clergerie & Sagot", 2024,
              "Why do small language models underperform? Studying LM saturation via the softmax bottleneck",
              "arXiv:2404.07647")  # fmt: skip
KULKARNI = Paper("kulkarni2026", "Kulkarni et al.", 2026,
                 "Disentangling geometry, performance, and training in language models",
                 "arXiv:2602.20433")  # fmt: skip
YANG = Paper("yang2018", "Yang, Dai, Salakhutdinov & Cohen", 2018,
             "Breaking the softmax bottleneck: a high-rank RNN language model",
             "arXiv:1711.03953")  # fmt: skip
MUON_SPECTRA = Paper("2605.21803", "arXiv:2605.21803", 2026,
                     "(on the rank of feed-forward matrices under AdamW and Muon; read in a summary)",
                     "arXiv:2605.21803")  # fmt: skip
ARTZI = Paper("godey2026", "Godey & Artzi", 2026,
              "Lost in backpropagation: the LM head is a gradient bottleneck",
              "arXiv:2603.10145")  # fmt: skip
