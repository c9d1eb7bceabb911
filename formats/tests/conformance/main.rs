//! Every format with every scheme: what it claims comes back exactly, as a solution and as a matrix to multiply with; what it does not
//! claim is refused with a reason; a single changed bit is seen.

mod bits;
mod configurations;
mod models;
mod parts;
mod schemes;
mod words;
