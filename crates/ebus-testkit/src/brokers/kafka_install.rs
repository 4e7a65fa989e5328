//! Installs Apache Kafka from its Maven artifacts: they are on every mirror, the tarball is not.

use std::{path::Path, process::Command};

use super::{
    BrokerError, Home, KAFKA_VERSION, Missing,
    install::{self, run, write},
};

/// Kafka 4 does not start on an older one.
const MIN_JAVA: u32 = 17;

/// Without a binding SLF4J is silent, and a broker that does not start says nothing. Versions are those that Kafka 4.3.0
/// brings of Log4j and SLF4J.
const POM: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>ebus</groupId><artifactId>test-brokers</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>@KAFKA@</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.4</version>
    </dependency>
  </dependencies>
</project>
"#;

const LOG4J: &str = "status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1}: %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
";

/// Installs Kafka under `home` with Java and Maven, or does nothing when it is there.
///
/// # Errors
/// [`BrokerError::Unavailable`] when Java 17 or Maven is not installed; otherwise what Maven said.
pub fn provision_kafka(home: &Home) -> Result<(), BrokerError> {
    check_java()?;
    install::install(home, &home.kafka(), |dir| {
        let pom = write(dir.join("pom.xml"), &POM.replace("@KAFKA@", KAFKA_VERSION))?;
        write(dir.join("log4j2.properties"), LOG4J)?;
        copy_jars(&pom, &dir.join("libs"))
    })
}

fn copy_jars(pom: &Path, libs: &Path) -> Result<(), BrokerError> {
    let mut maven = Command::new("mvn");
    maven.args(["--batch-mode", "--quiet", "dependency:copy-dependencies", "-DincludeScope=runtime", "-f"]);
    maven.arg(pom).arg(format!("-DoutputDirectory={}", libs.display()));
    run(&mut maven, || Missing::new("Maven (mvn) is not installed", "apt-get install maven")).map(drop)
}

/// Whether a Java that can run Kafka is installed.
pub(crate) fn check_java() -> Result<(), BrokerError> {
    const INSTALL: &str = "apt-get install openjdk-17-jre-headless";
    let text = run(Command::new("java").arg("-version"), || Missing::new("Java is not installed", INSTALL))?;
    match java_major(&text) {
        Some(found) if found < MIN_JAVA => {
            let reason = format!("Java {found} is too old for Kafka {KAFKA_VERSION}, which needs {MIN_JAVA}");
            Err(Missing::new(reason, INSTALL).into())
        }
        _ => Ok(()),
    }
}

/// Reads `openjdk version "17.0.15"` and `java version "1.8.0_402"`.
fn java_major(text: &str) -> Option<u32> {
    let version = text.split('"').nth(1)?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    match parts.next()? {
        1 => parts.next(),
        major => Some(major),
    }
}

#[cfg(test)]
mod tests {
    use super::java_major;

    #[test]
    fn java_versions_are_read_in_their_old_and_new_spelling() {
        assert_eq!(java_major("openjdk version \"17.0.15\" 2025-04-15"), Some(17));
        assert_eq!(java_major("java version \"1.8.0_402\""), Some(8));
        assert_eq!(java_major("openjdk version \"25-ea\" 2025-09-16"), Some(25));
        assert_eq!(java_major("no java here"), None);
    }
}
