"""What programs say of a failure in other languages: the system's messages, and plain words."""

from __future__ import annotations

# glibc's texts of frequent error numbers and signals, and the shells' of a missing command, in
# German, French, Spanish, Portuguese, Russian, Chinese and Japanese.
_SYSTEM = (
    "Datei oder Verzeichnis nicht gefunden|Keine Berechtigung|Die Operation ist nicht erlaubt"
    "|Eingabe-/Ausgabefehler|Auf dem Gerät ist kein Speicherplatz mehr verfügbar"
    "|Nicht genügend Hauptspeicher verfügbar|Verbindungsaufbau abgelehnt"
    "|Die Wartezeit für die Verbindung ist abgelaufen|Ist (?:k?ein) Verzeichnis"
    "|Die Datei existiert bereits|Das Argument ist ungültig|Ungültiges Argument"
    "|Das Dateisystem ist nur lesbar|Datenübergabe unterbrochen \\(broken pipe\\)"
    "|Zu viele offene Dateien|Das Gerät oder die Ressource ist belegt"
    "|Die Verbindung wurde vom Kommunikationspartner zurückgesetzt"
    "|Keine Route zum Zielrechner|Die Adresse wird bereits verwendet"
    "|Das Netzwerk ist nicht erreichbar|(?:Kommando|Befehl) nicht gefunden"
    "|Speicherzugriffsfehler|Zugriff verweigert",
    "Aucun fichier ou (?:dossier|répertoire) de ce type|Permission non accordée"
    "|Opération non permise|Erreur d'entrée/sortie"
    "|(?:Aucun|Plus d')\\s?espace disponible(?: sur le périphérique)?"
    "|(?:Ne peut|Impossible d')\\s?allouer de la mémoire|Connexion refusée"
    "|Connexion terminée par expiration du délai d'attente"
    "|(?:Est|N'est pas) un (?:dossier|répertoire)"
    "|Le fichier existe|Argument invalide|Système de fichiers accessible en lecture seulement"
    "|Trop de fichiers ouverts|Périphérique ou ressource occupé"
    "|Connexion ré-?initialisée par le correspondant|Adresse déjà utilisée"
    "|Le réseau n'est pas accessible|commande introuvable|Erreur de segmentation|Accès refusé",
    "No existe el (?:archivo|fichero) o el directorio|Permiso denegado|Operación no permitida"
    "|Error de entrada/salida|No queda espacio en el dispositivo|No se pudo asignar memoria"
    "|Conexión rehusada|Expiró el tiempo de conexión|(?:No )?es un directorio"
    "|El (?:archivo|fichero) ya existe|Argumento inválido"
    "|Sistema de (?:archivos|ficheros) de sólo lectura|Tubería rota"
    "|Demasiados (?:archivos|ficheros) abiertos|Dispositivo o recurso ocupado"
    "|Conexión reinicializada por la máquina remota|La dirección ya se está usando"
    "|La red es inaccesible|(?:orden|comando) no encontrad[oa]|no se encontró la orden"
    "|Violación de segmento|Acceso denegado",
    "Arquivo ou diretório inexistente|Ficheiro ou directório inexistente"
    "|Permissão (?:negada|recusada)|Operação não permitida|Erro de entrada/saída"
    "|Não há espaço disponível no dispositivo|Não foi possível alocar memória"
    "|(?:Conexão|Ligação) recusada|Tempo esgotado para conexão|Endereço já em uso"
    "|Sistema de arquivos somente para leitura|comando não encontrado|Falha de segmentação"
    "|Acesso negado",
    "Нет такого файла или каталога|Отказано в доступе|Операция не позволена|Ошибка ввода/вывода"
    "|На устройстве не осталось свободного места|(?:Не удалось|Невозможно) выделить память"
    "|В соединении отказано|Время ожидания соединения истекло|Это (?:не )?каталог"
    "|Файл существует|Недопустимый аргумент|Файловая система доступна только для чтения"
    "|Обрыв канала|Слишком много открытых файлов|Устройство или ресурс занято"
    "|Соединение разорвано другой стороной|Нет маршрута до узла|Адрес уже используется"
    "|Сеть недоступна|команда не найдена|Ошибка сегментирования",
    "没有那个文件或目录|权限不够|不允许的操作|输入/输出错误|设备上没有空间|无法分配内存|拒绝连接|连接超时"
    "|是一个目录|不是目录|文件已存在|无效的参数|只读文件系统|断开的管道|打开的文件过多|设备或资源忙"
    "|连接被对方重[设置]|没有到主机的路由|地址已在使用|网络不可达|未找到命令|段错误|拒绝访问",
    "そのようなファイルやディレクトリはありません|許可がありません|許可されていない操作です"
    "|入力/出力エラーです|デバイスに空き領域がありません|メモリを確保できません|接続を拒否されました"
    "|接続がタイムアウトしました|ディレクトリで(?:す|はありません)|ファイルが存在します|無効な引数です"
    "|読み込み専用ファイルシステムです|パイプが(?:壊れています|切断されました)"
    "|開いているファイルが多すぎます|デバイスもしくはリソースがビジー状態です"
    "|接続が相手からリセットされました|ホストへの経路がありません|アドレスは既に使用中です"
    "|コマンドが見つかりません",
)
SYSTEM_MESSAGES = f"(?:{'|'.join(_SYSTEM)})"
# Words that say that nothing of the kind was, or a number of it.
_NONE = (
    r"(?!.{0,160}(?:\b(?:kein\w{0,2}|nichts|ohne|aucune?|sans|ning[uú]n\w{0,2}|sin|nenhuma?|sem|нет|без)\b"
    r"|没有|なし|\d))"
)
# A whole sentence of a program that says that it failed.
FAILED = (
    rf"{_NONE}(?:.{{1,120}}\b(?:fehlgeschlagen|gescheitert|nicht gefunden|nicht möglich|verweigert)"
    r"|.{1,120}\ba échoué|.{1,120}\bintrouvable|échec d[eu'].{1,120}|impossible d[e'].{1,120}"
    r"|no se (?:pudo|puede) .{1,120}|.{1,120}\bfalló"
    r"|não foi possível .{1,120}|.{1,120}\bfalhou"
    r"|не удалось .{1,120}|не могу .{1,120}|.{1,120}\bне найден[ао]?"
    r"|(?:无法|找不到).{1,80}|.{1,80}失败"
    r"|.{1,80}(?:に失敗しました|が見つかりません|できません(?:でした)?))[.!。]?$"
)
