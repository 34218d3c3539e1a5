//! `NODE_NAMES` and `POD_NAMES`: what addresses are called. For people; no program reads them.

use bytemuck::{Pod, Zeroable};

/// A node's name: the value of `NODE_NAMES`, whose key is the node's tunnel address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NodeName {
    /// NUL-padded; Kubernetes allows 253 bytes.
    pub name: [u8; 256],
}

/// What Kubernetes calls a pod: the value of `POD_NAMES`, whose key is the pod's address. It stands for the holder of
/// that address only while there is an [`super::Endpoint`] as well.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PodName {
    /// NUL-padded; Kubernetes allows 63 bytes.
    pub namespace: [u8; 64],
    /// NUL-padded; Kubernetes allows 253 bytes.
    pub name: [u8; 256],
}

impl NodeName {
    /// Cut where it is longer than the field.
    pub fn new(name: &str) -> Self {
        Self { name: padded(name) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        text(&self.name)
    }
}

impl PodName {
    /// Cut where they are longer than the fields.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: padded(namespace), name: padded(name) }
    }

    /// Namespace and name.
    pub fn as_strs(&self) -> (&str, &str) {
        (text(&self.namespace), text(&self.name))
    }
}

fn padded<const N: usize>(name: &str) -> [u8; N] {
    let mut field = [0; N];
    field.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    field
}

/// Up to the first NUL, or to what is no UTF-8: a name that was cut inside of a character.
fn text(field: &[u8]) -> &str {
    let bytes = field.split(|byte| *byte == 0).next().unwrap_or_default();
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            bytes.get(..error.valid_up_to()).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were() {
        let longest = "n".repeat(253);
        assert_eq!(NodeName::new(&longest).as_str(), longest);
        assert_eq!(PodName::new("default", "web-0").as_strs(), ("default", "web-0"));
        assert_eq!(PodName::new("", "").as_strs(), ("", ""));
    }

    #[test]
    fn what_is_too_long_is_cut_to_whole_characters() {
        assert_eq!(NodeName::new(&"n".repeat(300)).as_str(), "n".repeat(256));
        assert_eq!(NodeName::new(&format!("n{}", "ä".repeat(200))).as_str(), format!("n{}", "ä".repeat(127)));
    }
}
