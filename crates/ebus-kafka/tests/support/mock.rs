//! librdkafka's mock cluster: brokers in this process that fail as they are told.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use async_trait::async_trait;
use ebus_core::{
    Backend, Capability, Committed, Error, ErrorKind, Group, Parking, Publisher, ReadRange, Reader, Source,
    SourceOptions, Topic, TopicInfo, TopicSpec,
};
use ebus_kafka::KafkaBackend;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Job = Box<dyn FnOnce(&Cluster) + Send>;

/// A mock cluster on a thread of its own, which is the only one that may touch it.
#[derive(Clone)]
pub(crate) struct Mock {
    jobs: Sender<Job>,
    pub(crate) bootstrap: String,
}

impl Mock {
    pub(crate) fn start(brokers: i32) -> Result<Self, Error> {
        let (jobs, todo) = channel::<Job>();
        let (up, bootstrap) = channel();
        std::thread::spawn(move || {
            let cluster = match MockCluster::new(brokers) {
                Ok(cluster) => cluster,
                Err(error) => return drop(up.send(Err(failed(error)))),
            };
            let _ = up.send(Ok(cluster.bootstrap_servers()));
            // Until the last of its clones is gone.
            while let Ok(job) = todo.recv() {
                job(&cluster);
            }
        });
        let bootstrap = bootstrap.recv().map_err(failed)??;
        Ok(Self { jobs, bootstrap })
    }

    /// Does something with the cluster, and waits until it is done.
    pub(crate) fn with<T: Send + 'static>(&self, work: impl FnOnce(&Cluster) -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job: Job = Box::new(move |cluster| drop(done.send(work(cluster))));
        self.jobs.send(job).expect("the thread of the mock cluster lives as long as this");
        result.recv().expect("the thread of the mock cluster lives as long as this")
    }

    pub(crate) fn create_topic(&self, topic: &str, partitions: u32) -> Result<(), Error> {
        let topic = topic.to_owned();
        let partitions = i32::try_from(partitions).map_err(failed)?;
        self.with(move |cluster| cluster.create_topic(&topic, partitions, 1)).map_err(failed)
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unexpected, "the mock cluster failed").with_source(error)
}

/// A connection to a mock cluster, which cannot create topics by its protocol.
pub(crate) struct Mocked {
    pub(crate) backend: KafkaBackend,
    pub(crate) mock: Mock,
}

#[async_trait]
impl Backend for Mocked {
    fn capability(&self) -> Capability {
        self.backend.capability()
    }

    fn publisher(&self) -> Publisher {
        self.backend.publisher()
    }

    async fn source(&self, options: SourceOptions) -> Result<Box<dyn Source>, Error> {
        self.backend.source(options).await
    }

    async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        if let Err(error) = self.backend.describe_topic(&spec.topic).await
            && error.kind() == ErrorKind::Closed
        {
            return Err(error);
        }
        self.mock.create_topic(spec.topic.as_str(), spec.partitions)?;
        self.backend.describe_topic(&spec.topic).await
    }

    async fn describe_topic(&self, topic: &Topic) -> Result<TopicInfo, Error> {
        self.backend.describe_topic(topic).await
    }

    async fn read(&self, range: ReadRange) -> Result<Box<dyn Reader>, Error> {
        self.backend.read(range).await
    }

    async fn committed(&self, group: &Group, topic: &Topic) -> Result<Vec<Committed>, Error> {
        self.backend.committed(group, topic).await
    }

    async fn parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        // Creating it again says that it is there, in one way or another.
        let _ = self.mock.create_topic("ebus-parked", 1);
        self.backend.parking(group).await
    }

    async fn existing_parking(&self, group: &Group) -> Result<Arc<dyn Parking>, Error> {
        self.backend.existing_parking(group).await
    }

    async fn close(&self, within: Duration) -> Result<(), Error> {
        self.backend.close(within).await
    }
}

impl Mocked {
    pub(crate) async fn connect(
        mock: &Mock,
        change: impl FnOnce(ebus_kafka::KafkaConfig) -> ebus_kafka::KafkaConfig,
    ) -> Result<Arc<Self>, Error> {
        // A rebalance of the mock takes a session less a second, whoever has joined; who waits in it commits nothing. So that this
        // is less than a lease, members hear of it late.
        let config = ebus_kafka::KafkaConfig::new(mock.bootstrap.clone())
            .with_session_timeout(Duration::from_secs(3))
            .property("heartbeat.interval.ms", "1000");
        let backend = KafkaBackend::connect(change(config)).await?;
        Ok(Arc::new(Self { backend, mock: mock.clone() }))
    }
}
