(* An HTTP server on Lwt and Cohttp: `main [PORT]`; prints the port that it listens on. *)

open Lwt.Infix
module Server = Cohttp_lwt_unix.Server

let token_of headers =
  Cohttp.Cookie.Cookie_hdr.extract headers |> List.assoc_opt "token"

let cookie (who : Store.visitor) =
  Cohttp.Header.of_list
    [ ("set-cookie", "token=" ^ who.token); ("content-type", "text/html") ]

let callback _connection request _body =
  let headers = Cohttp.Request.headers request in
  let path = Uri.path (Cohttp.Request.uri request) in
  let who = Store.visit (token_of headers) in
  match Routes.dispatch who (List.tl (String.split_on_char '/' path)) with
  | Routes.Missing -> Server.respond_not_found ()
  | Routes.Found text ->
      text >>= fun body ->
      Server.respond_string ~headers:(cookie who) ~status:`OK ~body ()

let listen port =
  let socket = Lwt_unix.socket Unix.PF_INET Unix.SOCK_STREAM 0 in
  Lwt_unix.setsockopt socket Unix.SO_REUSEADDR true;
  Lwt_unix.bind socket (Unix.ADDR_INET (Unix.inet_addr_loopback, port)) >|= fun () ->
  Lwt_unix.listen socket 128;
  (match Lwt_unix.getsockname socket with
  | Unix.ADDR_INET (_, port) -> Printf.printf "listening %d\n%!" port
  | Unix.ADDR_UNIX _ -> assert false);
  socket

let main =
  let port = if Array.length Sys.argv > 1 then int_of_string Sys.argv.(1) else 0 in
  let stop, terminated = Lwt.wait () in
  ignore (Lwt_unix.on_signal Sys.sigterm (fun _ -> Lwt.wakeup_later terminated ()));
  listen port >>= fun socket ->
  Server.create ~stop ~mode:(`TCP (`Socket socket)) (Server.make ~callback ())

let () = Lwt_main.run main
