// A mail program with Go's own net/smtp: client ADDRESS HOST CERTIFICATE USER PASSWORD SENDER RECIPIENT...
// Logs in over TLS where CERTIFICATE is not "-", sends standard input to each recipient in a transaction of its own,
// all over one connection, and prints a line for each: "ok", or the code and the text of the refusal as Go read them.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/smtp"
	"net/textproto"
	"os"
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func send(client *smtp.Client, sender string, recipient string, content []byte) error {
	if err := client.Mail(sender); err != nil {
		return err
	}
	if err := client.Rcpt(recipient); err != nil {
		return err
	}
	data, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := data.Write(content); err != nil {
		return err
	}
	return data.Close()
}

func main() {
	address, host, certificate, user, password, sender := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]
	content, err := io.ReadAll(os.Stdin)
	check(err)
	client, err := smtp.Dial(address)
	check(err)
	check(client.Hello("client.example.org"))
	if certificate != "-" {
		pem, err := os.ReadFile(certificate)
		check(err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		check(client.StartTLS(&tls.Config{RootCAs: roots, ServerName: host}))
		check(client.Auth(smtp.PlainAuth("", user, password, host)))
	}
	for _, recipient := range os.Args[7:] {
		switch err := send(client, sender, recipient, content).(type) {
		case nil:
			fmt.Println("ok")
		case *textproto.Error:
			fmt.Println(err.Code, err.Msg)
			check(client.Reset())
		default:
			check(err)
		}
	}
	check(client.Quit())
}
