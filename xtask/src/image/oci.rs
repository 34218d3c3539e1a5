//! An image as one tar archive: an OCI image layout that is also what `docker save` writes.
//!
//! containerd (`ctr images import`), podman (`podman load`) and kind read the layout (image-spec 1.0, image-layout.md);
//! Docker before version 25 reads `manifest.json`, which names the same blobs. Same image, same bytes.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header, HeaderMode};

use super::rootfs::RootFs;

/// What an image is made of.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// Name and tag that it is loaded as.
    pub(crate) reference: &'a str,
    /// As OCI calls it, after Go.
    pub(crate) architecture: &'a str,
    /// One layer each, the lowest first.
    pub(crate) layers: &'a [&'a RootFs],
    /// `Entrypoint`, `Cmd`, `Env`, `Labels` …
    pub(crate) config: Value,
}

/// Content and what it is referred to by.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self { digest: hex(&Sha256::digest(&content)), content }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.name(), "size": self.content.len() })
    }

    fn name(&self) -> String {
        format!("sha256:{}", self.digest)
    }
}

/// The archive, and the digest of the image's manifest.
pub(crate) fn archive(image: &Image<'_>) -> Result<(Vec<u8>, String)> {
    let tagged = image.reference.rsplit('/').next().is_some_and(|name| name.contains(':'));
    ensure!(tagged, "the reference {} has no tag: write it as localhost/overlay:1", image.reference);
    let layers = image.layers.iter().map(|layer| layer.layer().map(Blob::new)).collect::<Result<Vec<_>>>()?;
    let config = Blob::json(&json!({
        "architecture": image.architecture,
        "os": "linux",
        "config": image.config,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(Blob::name).collect::<Vec<_>>() },
    }));
    let of_layer = |layer: &Blob| layer.descriptor("application/vnd.oci.image.layer.v1.tar");
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": layers.iter().map(of_layer).collect::<Vec<_>>(),
    }));
    let mut descriptor = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    descriptor["platform"] = json!({ "architecture": image.architecture, "os": "linux" });
    descriptor["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": image.reference,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor],
    });
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [image.reference],
        "Layers": layers.iter().map(Blob::path).collect::<Vec<_>>(),
    }]);

    let digest = manifest.name();
    let mut blobs: Vec<_> = layers.into_iter().chain([config, manifest]).collect();
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    blobs.dedup_by(|a, b| a.digest == b.digest);
    let mut archive = Builder::new(Vec::new());
    archive.mode(HeaderMode::Deterministic);
    put(&mut archive, "oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())?;
    for directory in ["blobs/", "blobs/sha256/"] {
        put(&mut archive, directory, &[])?;
    }
    for blob in &blobs {
        put(&mut archive, &blob.path(), &blob.content)?;
    }
    put(&mut archive, "index.json", index.to_string().as_bytes())?;
    put(&mut archive, "manifest.json", docker.to_string().as_bytes())?;
    Ok((archive.into_inner().context("end the archive")?, digest))
}

fn put(archive: &mut Builder<Vec<u8>>, path: &str, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    let directory = path.ends_with('/');
    header.set_entry_type(if directory { EntryType::Directory } else { EntryType::Regular });
    header.set_mode(if directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("add {path} to the archive"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    fn build(reference: &str) -> Result<(Vec<u8>, String)> {
        let mut root = RootFs::default();
        root.executable("/overlay", "program").unwrap();
        let config = json!({ "Entrypoint": ["/overlay"] });
        archive(&Image { reference, architecture: "amd64", layers: &[&root, &root], config })
    }

    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Blob::new(b"abc".to_vec()).digest, digest);
    }

    #[test]
    fn every_blob_is_named_by_its_digest_and_every_descriptor_leads_to_one() {
        let (archive, digest) = build("localhost/overlay:1").unwrap();
        let files = unpack(&archive);
        for (path, content) in &files {
            if let Some(name) = path.strip_prefix("blobs/sha256/").filter(|name| !name.is_empty()) {
                assert_eq!(hex(&Sha256::digest(content)), *name);
            }
        }
        let follow = |descriptor: &Value| {
            let path = descriptor["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            let content = &files[&path];
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digest);
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/overlay:1");
        let manifest: Value = serde_json::from_slice(follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/overlay");
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for (layer, id) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
            assert_eq!(layer["digest"], *id, "layers are not compressed");
            assert!(unpack(follow(layer)).contains_key("overlay"));
        }
    }

    #[test]
    fn dockers_own_list_names_the_same_image() {
        let files = unpack(&build("localhost/overlay:1").unwrap().0);
        let list: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(list[0]["RepoTags"], json!(["localhost/overlay:1"]));
        for path in [&list[0]["Config"], &list[0]["Layers"][0], &list[0]["Layers"][1]] {
            assert!(files.contains_key(path.as_str().unwrap()), "{path}");
        }
    }

    #[test]
    fn the_same_image_has_the_same_bytes() {
        assert_eq!(build("localhost/overlay:1").unwrap(), build("localhost/overlay:1").unwrap());
    }

    #[test]
    fn a_reference_without_a_tag_is_refused() {
        for reference in ["overlay", "localhost:5000/overlay"] {
            assert!(build(reference).unwrap_err().to_string().contains("no tag"), "{reference}");
        }
    }
}
