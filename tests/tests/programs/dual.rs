//! Both families, inside and outside: a node with two subnets and two tunnel addresses, peers that are reached over one or
//! the other, and tables of packets for each of the four ways.

mod bed;
mod decap;
mod encap;
mod events;
mod flows;
mod guard;
mod link;
mod pod;
mod too_big;

pub(crate) use bed::with;
