//! Packets that a pod itself makes.
