//! ONNX: the graph of a decoder, its weights beside it, and the files that onnxruntime-genai wants to have there.

pub(crate) mod expressible;
pub(crate) mod genai;
pub(crate) mod graph;
pub(crate) mod proto;
