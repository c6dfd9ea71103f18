//! Every rule switched off in turn: which promise breaks without it.
