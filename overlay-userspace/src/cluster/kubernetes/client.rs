//! The connection to the API server.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use log::info;
use tokio::sync::Notify;
use tower::{limit::RateLimitLayer, timeout::TimeoutLayer, util::MapResponseLayer};

use crate::config::Kubernetes;

/// How long a connection may take, and then an answer until it begins. A list of some hundred nodes takes well below one
/// second.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);

/// Requests per second, however wrong things go: a server that ends every watch at once, say.
const REQUESTS: u64 = 10;

/// A client, and what is notified whenever the API server has answered a request with what was asked for.
///
/// Reads files; an error is one of the configuration: the API server is not asked.
pub(super) async fn connect(settings: &Kubernetes) -> anyhow::Result<(Client, Arc<Notify>)> {
    let mut config = config(settings).await?;
    if let Some(address) = &settings.api_server {
        config.cluster_url = address.parse().context("parse kubernetes.api_server")?;
    }
    config.connect_timeout = Some(CONNECT);
    // The watch has a better idea of when to try again.
    config.default_retry = false;
    info!("the nodes come from the API server at {}", config.cluster_url);

    let answered = Arc::new(Notify::new());
    let notify = Arc::clone(&answered);
    let note = move |response: hyper::Response<_>| {
        if response.status().is_success() {
            notify.notify_one();
        }
        response
    };
    let builder = ClientBuilder::try_from(config).context("prepare the connection to the API server")?;
    let client = builder
        .with_layer(&RateLimitLayer::new(REQUESTS, Duration::from_secs(1)))
        .with_layer(&TimeoutLayer::new(ANSWER))
        .with_layer(&MapResponseLayer::new(note))
        .build();
    Ok((client, answered))
}

/// Who the agent is to the API server: by the kubeconfig that it is given, by its pod's service account, or by KUBECONFIG.
async fn config(settings: &Kubernetes) -> anyhow::Result<Config> {
    let options = KubeConfigOptions::default();
    if let Some(path) = &settings.kubeconfig {
        let file = Kubeconfig::read_from(path)
            .with_context(|| format!("read kubernetes.kubeconfig {}", path.display()))?;
        return Config::from_custom_kubeconfig(file, &options)
            .await
            .with_context(|| format!("use kubernetes.kubeconfig {}", path.display()));
    }
    match Config::incluster_env() {
        Ok(config) => Ok(config),
        Err(error) => match Kubeconfig::from_env().context("read the file that KUBECONFIG names")? {
            Some(file) => Config::from_custom_kubeconfig(file, &options)
                .await
                .context("use the file that KUBECONFIG names"),
            None => Err(error).context(
                "find the API server: there is no service account of a pod, and no KUBECONFIG; set kubernetes.kubeconfig",
            ),
        },
    }
}
