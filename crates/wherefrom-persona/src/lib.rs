//! Persona vectors (Chen et al. 2025, arXiv 2507.21509): directions in the residual stream that stand for a trait of character,
//! found from the trait's description, and how far a text lies along them.
